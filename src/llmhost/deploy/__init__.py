"""What is loaded where: catalogue, deployments, and the effects that change them."""
