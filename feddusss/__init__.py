"""feddusss: what every command line shares (config files, exit codes, console). The method is in `dusss_core`."""

__version__ = "0.3.0"
