"""The micro world: a procedural 3D world, its captions, and the recipe of every weight that ships in worldr1/assets."""
