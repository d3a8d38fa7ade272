-- The table lens with the word of each top token, as the table vocab has it.
-- column top1_text: text of the top token; '' for ids that stand for no token
SELECT lens.*, vocab.token_text AS top1_text
FROM lens LEFT JOIN vocab ON vocab.pair = lens.pair AND vocab.token_id = lens.top1
