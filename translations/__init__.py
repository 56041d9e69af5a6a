"""The catalogues: every text that people are told, in other languages than English (`make messages`)."""
