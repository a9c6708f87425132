"""Ranks of one server: rank tables, starting and watching them; ModelArts."""
