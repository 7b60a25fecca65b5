"""From a traced graph to readable PyTorch source, without writing or running anything."""
