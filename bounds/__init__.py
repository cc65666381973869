"""What a network can output on a region of inputs."""
