"""Other people's captures and streams into a lake, and a lake's captures out of it, in the formats that other tools read."""
