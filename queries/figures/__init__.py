"""Figures of answers and the page that gathers them."""
