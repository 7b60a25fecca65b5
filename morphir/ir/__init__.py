"""The growable graph IR: an fx graph that owns its parameters, and the channel layer on top of it."""
