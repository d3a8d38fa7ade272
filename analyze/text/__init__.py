"""Measures of replies: right answers, form, word classes, loops."""
