ExUnit.start(exclude: [:stress, :spec])
