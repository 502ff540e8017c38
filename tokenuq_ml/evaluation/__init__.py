"""How good a model is: held-out losses, generated answers and how they are judged, and their intervals."""
