"""Statistics of weights and gradients: packed on their way in, and as readers want them."""
