"""`verify`: whether a run, model, checkpoint, evaluation, comparison, submission or data set is what was written."""
