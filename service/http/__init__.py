"""Everything around the routes: connections, bodies, uploads, errors and the context of a request."""
