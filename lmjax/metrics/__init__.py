"""The metrics of each field: text, spans, SQuAD, classification.

Numbers and strings in, numbers out, through the field's own libraries where there are
any. Losses are in `lmjax/tasks`; nothing here knows a model or a batch.
"""
