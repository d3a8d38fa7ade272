"""Answers: estimates with intervals, sentences, locks, reproduction."""
