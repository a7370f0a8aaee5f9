"""What FreeU and the networks under it cost, beside the other implementations that are installed."""
