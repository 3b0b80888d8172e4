"""Communication algorithms compared by training: the same model, data and seeds under each."""
