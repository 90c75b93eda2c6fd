"""A fleet of real processes: keys and certificates, and the whole fleet on one machine."""
