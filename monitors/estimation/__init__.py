"""How good a model probably is on rows whose labels have not come yet."""
