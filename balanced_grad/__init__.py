"""balanced_grad: balanced gradients for multi-modal PyTorch models, by one line in the training loop."""

__version__ = "0.1.0"
