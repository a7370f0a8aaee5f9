"""What is measured about FreeU on a trained model."""
