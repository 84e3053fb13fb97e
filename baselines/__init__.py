"""The methods that WiSparse is compared with: one file each, plus its configuration in conf/method."""
