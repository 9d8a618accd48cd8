"""The coordinator's side of a real deployment: certificates, start-up kits, and the register of the hospitals' keys."""
