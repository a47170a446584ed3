# Starts the VM that is attacked, and watches it: see bin/hostile.

defmodule Hostile.Attack do
  @moduledoc false

  # The child says something every second. Compiling its own files comes first.
  @silence 60_000

  def run([kind | args]) when kind in ["calls", "guests"] do
    {options, [], []} =
      OptionParser.parse(args,
        strict: [
          seed: :integer,
          count: :integer,
          seconds: :integer,
          round: :integer,
          workers: :integer
        ]
      )

    per_round = if kind == "calls", do: 3_000, else: 200
    count = options[:count] || if(kind == "calls", do: 60_000, else: 4_000)
    first = options[:round] || 1
    rounds = if options[:seconds], do: 1_000_000, else: div(count - 1, per_round) + 1

    attack = %{
      kind: kind,
      seed: options[:seed] || 1,
      first: first,
      last: first + rounds - 1,
      workers: options[:workers],
      seconds: options[:seconds],
      until: nil,
      per_round: per_round,
      round: nil,
      found: [],
      reported: System.monotonic_time(:second)
    }

    folder = Path.join(System.tmp_dir!(), "beamr-hostile-#{System.os_time(:millisecond)}")
    File.mkdir_p!(folder)

    case watch(start(attack, folder), attack) do
      {:ok, attack} ->
        File.rm_rf!(folder)
        rounds = attack.round - first + 1
        IO.puts("survived #{rounds * per_round} #{what(kind)}, seed #{attack.seed}")

        for {round, line} <- Enum.reverse(attack.found), do: IO.puts("in round #{round}: #{line}")
        if attack.found != [], do: System.halt(1)

      {:error, reason, attack} ->
        tell(reason, attack, folder)
        System.halt(1)
    end
  end

  def run(_args) do
    IO.puts(:stderr, "usage: bin/hostile calls|guests|bytes [options]; all are listed in it")
    System.halt(2)
  end

  defp what("calls"), do: "calls"
  defp what("guests"), do: "modules"

  defp start(attack, folder) do
    ebin = Application.app_dir(:beamr, "ebin")
    child = Path.expand("test/hostile/child.exs")
    smith = Path.expand(System.get_env("BEAMR_SMITH", "smith"))

    args =
      ["-pa", ebin, child, File.cwd!(), attack.kind] ++
        Enum.map([attack.seed, attack.first, attack.last], &Integer.to_string/1) ++
        ["#{attack.workers}", smith]

    # What the emulator or Rust says at its end is in `stderr`.
    shell = ~S(exec 2>stderr; exec "$@")
    elixir = System.find_executable("elixir")

    Port.open({:spawn_executable, System.find_executable("sh")}, [
      :binary,
      :exit_status,
      {:line, 100_000},
      {:cd, folder},
      {:env, env()},
      {:args, ["-c", shell, "sh", elixir | args]}
    ])
  end

  # The library's path may be relative.
  defp env do
    case System.get_env("BEAMR_NATIVE_PATH") do
      nil -> []
      path -> [{~c"BEAMR_NATIVE_PATH", path |> Path.expand() |> String.to_charlist()}]
    end
  end

  defp watch(port, attack) do
    receive do
      {^port, {:data, {_eol, line}}} -> heard(line, port, attack)
      {^port, {:exit_status, status}} -> {:error, "the VM ended with status #{status}", attack}
    after
      @silence ->
        {:error, "the VM was silent for #{div(@silence, 1_000)} seconds", kill(port, attack)}
    end
  end

  defp heard("beat", port, attack), do: watch(port, attack)

  # The time begins when the VM is ready.
  defp heard("round" <> _ = line, port, %{seconds: seconds} = attack) when is_integer(seconds) do
    until = System.monotonic_time(:second) + seconds
    heard(line, port, %{attack | seconds: nil, until: until})
  end

  defp heard("round " <> round, port, attack) do
    now = System.monotonic_time(:second)
    attack = %{attack | round: String.to_integer(round)}

    cond do
      attack.until && now >= attack.until ->
        stop(port)
        watch(port, %{attack | until: nil})

      now - attack.reported >= 10 ->
        IO.puts("round #{round}")
        watch(port, %{attack | reported: now})

      true ->
        watch(port, attack)
    end
  end

  defp heard("done" <> _ = line, _port, attack) do
    IO.puts(line)
    {:ok, attack}
  end

  defp heard(line, port, attack) do
    IO.puts(line)

    case line do
      # A panic is a crash that rustler caught.
      "found panic" <> _ -> {:error, "Rust panicked", kill(port, attack)}
      # On a machine with much else to do, a long wait need not be Beamr's.
      "found wait" <> _ -> watch(port, attack)
      "found " <> _ -> watch(port, %{attack | found: [{attack.round, line} | attack.found]})
      _ -> watch(port, attack)
    end
  end

  defp kill(port, attack) do
    with {:os_pid, pid} <- Port.info(port, :os_pid), do: System.cmd("kill", ["-KILL", "#{pid}"])
    attack
  end

  # The child ends at the end of its round.
  defp stop(port), do: Port.command(port, "stop\n")

  defp tell(reason, attack, folder) do
    round = attack.round || attack.first
    IO.puts("\n#{reason}, in round #{round} of seed #{attack.seed}")

    for file <- Enum.sort(Path.wildcard(Path.join(folder, "journal-*"))) do
      IO.puts("\n#{Path.basename(file)}, the last calls:")
      file |> File.read!() |> journal() |> Enum.each(&IO.puts("  " <> &1))
    end

    IO.puts("\nwhat it said: #{folder}/stderr; the same again:")

    IO.puts(
      "  bin/hostile #{attack.kind} --seed #{attack.seed} --round #{round} --count #{attack.per_round}"
    )
  end

  defp journal(text) do
    text
    |> String.split("\n", trim: true)
    |> Enum.map(&String.trim/1)
    |> Enum.sort_by(fn line -> line |> Integer.parse() |> elem(0) end)
    |> Enum.take(-8)
  end
end

Hostile.Attack.run(System.argv())
