"""Recipes: named sets of flags, and flags chosen for the images that are there."""
