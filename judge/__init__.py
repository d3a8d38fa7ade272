"""An LLM as judge of replies: rubrics, questions, verdicts, agreement with people."""
