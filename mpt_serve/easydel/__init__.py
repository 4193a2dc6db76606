"""EasyDeL's serving calls over this package's server: `JAXServer` (docs/easydel.md)."""
