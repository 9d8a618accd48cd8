"""The grid of accuracy measurements: data set x labels x method x setting x seed, one small file per cell."""
