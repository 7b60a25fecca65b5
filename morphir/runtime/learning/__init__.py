"""The learner: the traced graph lowered, every morphism learned and scored at once."""
