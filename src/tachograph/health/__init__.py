"""Health of trainings, told from what was recorded: rules over metrics and statistics of tensors.

Knows records, no framework and no hook; so it takes none of the training's time in the hot path,
and looks at a finished run as it looks at a live one.
"""
