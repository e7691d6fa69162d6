"""Train one large neural network together, on computers that nobody has to own all of."""

__version__ = "0.1.0"
