"""One hospital's data: from its manifest to the arrays that are trained on, and the tools to get there."""
