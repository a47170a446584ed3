# All of bench/ in one run, and the table and the picture of it: see `mix help beamr.bench`.

Code.require_file("measure.exs", __DIR__)
Code.require_file("picture.exs", __DIR__)

defmodule Bench.All do
  @moduledoc false

  # In the order of the table.
  @files ~w(engine basics calls memory structs hosts wasi servers many compile fairness)

  # What they are made of, and what asks another question.
  @others ~w(all alive build compute large measure picture soak)

  def main(args) do
    {opts, []} = OptionParser.parse!(args, strict: [only: :string, quick: :boolean, out: :string])

    check_files!()
    names = if opts[:only], do: chosen!(String.split(opts[:only], ",")), else: @files
    if opts[:quick], do: System.put_env("BEAMR_BENCH_QUICK", "1")
    figures = for name <- names, do: {name, figures(name)}
    write(figures, opts[:out] || "tmp/bench")
  end

  # One that nobody runs would rot.
  defp check_files! do
    found =
      for path <- Path.wildcard(Path.join(__DIR__, "*.exs")), do: Path.basename(path, ".exs")

    unknown = found -- (@files ++ @others)
    if unknown != [], do: raise("not in bench/all.exs: #{Enum.join(unknown, ", ")}")
  end

  defp chosen!(names) do
    unknown = names -- @files
    if unknown != [], do: raise(ArgumentError, "there is no bench/#{hd(unknown)}.exs")
    names
  end

  # A process for each, so that none is measured amid the garbage of the one before.
  defp figures(name) do
    Task.async(fn ->
      IO.puts("\n== bench/#{name}.exs")
      Code.require_file("#{name}.exs", __DIR__)
      Bench.Measure.take_figures()
    end)
    |> Task.await(:infinity)
  end

  defp write(figures, folder) do
    File.mkdir_p!(folder)
    table = Path.join(folder, "figures.md")
    picture = Path.join(folder, "figures.svg")
    File.write!(table, [machine(), Enum.map(figures, &section/1)])

    ratios =
      for {_name, figures} <- figures,
          {:row, _title, label, measured, base, baseline} <- figures do
        {"#{label} : #{base}", measured / baseline}
      end

    Bench.Picture.bars(picture, "Times, each as a ratio to its baseline", ratios)
    IO.puts("\nwritten: #{table}, #{picture}")
  end

  defp machine do
    """
    Elixir #{System.version()}, OTP #{System.otp_release()}, #{processor()}, \
    #{System.schedulers_online()} schedulers. A time is the batch at the tenth percentile of many \
    short ones; the batches of an operation and of its baseline took turns.
    """
  end

  # As Linux tells it.
  defp processor do
    with {:ok, text} <- File.read("/proc/cpuinfo"),
         [_, name] <- Regex.run(~r/^model name\s*: (.*)$/m, text) do
      name
    else
      _ -> to_string(:erlang.system_info(:system_architecture))
    end
  end

  defp section({name, figures}) do
    figures = Enum.chunk_by(figures, &elem(&1, 1))
    ["\n## bench/#{name}.exs\n" | Enum.map(figures, &part/1)]
  end

  defp part([first | _] = figures) do
    rows = for {:row, _, _, _, _, _} = row <- figures, do: row
    facts = for {:fact, _title, text} <- figures, do: ["\n- ", text]

    head = [
      "\n| operation | time | baseline | its time | ratio |\n",
      "|---|---:|---|---:|---:|\n"
    ]

    rows = if rows == [], do: [], else: [head | Enum.map(rows, &row/1)]
    ["\n### ", elem(first, 1) || "", "\n", rows, facts, "\n"]
  end

  defp row({:row, _title, label, measured, baseline_label, baseline}) do
    ratio = :erlang.float_to_binary(measured / baseline, decimals: 2)
    time = &Bench.Measure.time/1
    "| #{label} | #{time.(measured)} | #{baseline_label} | #{time.(baseline)} | #{ratio} x |\n"
  end
end
