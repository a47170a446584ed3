ExUnit.start(exclude: [:stress])
