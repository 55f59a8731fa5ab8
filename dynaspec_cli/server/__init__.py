"""An OpenAI-compatible server over one engine: HTTP in front, a queue, one thread that generates.

Data flows one way: body -> asked -> jobs -> the engine; replies are made of its events.
"""
