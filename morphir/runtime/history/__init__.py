"""The action stream: every change of a graph, numbered, on disk, and any point of it restored."""
