"""Gemini's generateContent translated to and from Chat Completions.

request   the request, with the list of its fields
contents  its conversation
schemas   its schemas, which write types in upper case
reply     the whole answer
stream    the answer piece by piece
"""
