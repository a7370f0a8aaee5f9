"""The web page: FreeU beside the plain model, on one model that all visitors share."""
