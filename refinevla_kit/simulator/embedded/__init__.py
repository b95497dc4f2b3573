"""The asset pack the kit makes by itself: meshes, robot, backgrounds and info files, in the folder layout ManiSkill looks for."""
