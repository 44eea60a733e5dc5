"""What a run records beside its points, gathered without delaying the training."""
