"""Free generation: texts under sweeps of edits, their scores, effects and verdicts."""
