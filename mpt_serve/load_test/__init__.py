"""Load tests of OpenAI-style servers: requests, their timing, and what they say of the server."""
