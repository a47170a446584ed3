missing = Beamr.RealGuest.missing()

if missing != [] do
  IO.puts(
    "Without the tests of real guests (#{Enum.join(missing, ", ")}): test/guests/fetch gets them."
  )
end

absent = if missing == [], do: [], else: [:real_guests]
ExUnit.start(exclude: [:stress, :spec | absent])
