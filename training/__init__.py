"""The application: thin scripts around the library."""
