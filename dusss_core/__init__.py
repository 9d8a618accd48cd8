"""The method, in plain torch: it knows neither Flower nor config files, and imports no other room."""
