defmodule Beamr.SpecTest do
  # The scripts of WebAssembly's specification, one test for each, every directive counted:
  #
  #     bin/spec
  use ExUnit.Case, async: false

  @moduletag :spec
  @moduletag timeout: :infinity

  @folder Path.expand("../../tmp/spec", __DIR__)
  @scripts for path <- "#{@folder}/**/*.term" |> Path.wildcard() |> Enum.sort(),
               do: {path, path |> Path.relative_to(@folder) |> Path.rootname()}

  # Proposals that the engine does not have, and those that it has but does not enable unless
  # asked to: modules that need these may be refused as `:unsupported`, and nothing else may.
  @missing ["custom-descriptors"]
  @disabled ["custom-page-sizes", "threads", "wide-arithmetic"]

  # By script, the lines of assertions that a later version of the specification has withdrawn:
  # the scripts of a proposal stay as they were when it was finished.
  @superseded %{
    # Memories and tables beside the first were not allowed, and their indices had to be written as
    # one zero byte; limits were at most 32 bits long, and so were shorter.
    "function-references/binary" => [145, 165, 184, 203, 242, 261, 279, 297],
    "memory64/binary" => [876, 896, 915, 934, 973, 992, 1010, 1028],
    "multi-value/binary" => [162, 182, 201, 220, 259, 278, 296, 314],
    "reference-types/binary" => [157, 354, 362, 419, 756, 776, 795, 814, 853, 872, 890, 908],
    "reference-types/binary-leb128" => [217, 225, 404, 461],
    # Only one memory was allowed.
    "memory64/memory" => [10, 11],
    "memory64/memory64" => [8, 9],
    "reference-types/imports" => [416, 420, 424],
    "threads/imports" => [309, 313, 317, 404, 408, 412],
    "threads/memory" => [14, 15],
    # Segments out of bounds were found when a module was linked. Now they trap.
    "mutable-global/linking" => [206, 227, 238, 298, 334, 344],
    # Code that is never reached was checked more strictly.
    "reference-types/unreached-invalid" => [539]
  }

  # By script, the lines that fail for another reason, which is said here.
  @failing %{}

  setup_all do
    {:ok, outcomes} = Agent.start(fn -> [] end)

    on_exit(fn ->
      outcomes |> Agent.get(& &1) |> Enum.reduce(%{}, &count/2) |> report()
      Agent.stop(outcomes)
    end)

    {:ok, outcomes: outcomes}
  end

  test "the scripts are there" do
    assert length(@scripts) > 300, "they are not in #{@folder}; bin/spec fetches them"
  end

  test "the lists are of scripts that are there" do
    names = for {_path, name} <- @scripts, do: name
    assert (Map.keys(@superseded) ++ Map.keys(@failing)) -- names == []
    assert (@missing ++ @disabled) -- Enum.map(names, &Path.dirname/1) == []
  end

  # Memories that are compact are code of another kind.
  for {path, name} <- @scripts, {kind, options} <- [{"", []}, {", compact", [compact: true]}] do
    folder = Path.dirname(name)
    if folder in @missing, do: @tag(skip: "not in the engine")
    @tag withdrawn: Map.get(@superseded, name, []), failing: Map.get(@failing, name, [])

    test name <> kind, %{outcomes: all, withdrawn: withdrawn, failing: known} do
      script = unquote(path) |> File.read!() |> :erlang.binary_to_term()

      outcomes =
        for {line, kind, outcome} <- Beamr.Spec.run(script, unquote(options)) do
          case outcome do
            {:failed, _text} -> {line, kind, if(line in withdrawn, do: :withdrawn, else: outcome)}
            _ -> {line, kind, outcome}
          end
        end

      # Counted once.
      if unquote(options) == [], do: Agent.update(all, &(outcomes ++ &1))
      failed = for {line, kind, {:failed, text}} <- outcomes, do: {line, kind, text}
      unsupported = for {line, _kind, :unsupported} <- outcomes, do: line

      assert Enum.reject(failed, fn {line, _kind, _text} -> line in known end) == []
      assert unsupported == [] or unquote(folder) in @disabled

      # What is on a list fails, or does not belong there.
      listed = for {line, _kind, :withdrawn} <- outcomes, do: line
      assert withdrawn -- listed == []
      assert known -- Enum.map(failed, &elem(&1, 0)) == []
    end
  end

  defp count({_line, kind, outcome}, counts) do
    outcome = with {outcome, _text} when outcome == :failed <- outcome, do: :failed
    Map.update(counts, {kind, outcome}, 1, &(&1 + 1))
  end

  defp report(counts) do
    assertions =
      for {{kind, outcome}, n} <- counts, kind |> to_string() |> String.starts_with?("assert_") do
        {outcome, n}
      end

    IO.puts("\n\nWebAssembly's specification: #{total(assertions)} assertions")
    for {kind, n} <- by(counts, &elem(&1, 0)), do: IO.puts("  #{pad(n)} #{kind}")
    IO.puts("of all directives")
    for {outcome, n} <- by(counts, &elem(&1, 1)), do: IO.puts("  #{pad(n)} #{describe(outcome)}")
  end

  defp by(counts, key) do
    counts
    |> Enum.group_by(fn {counted, _n} -> key.(counted) end)
    |> Enum.map(fn {key, group} -> {key, total(group)} end)
    |> Enum.sort_by(fn {_key, n} -> -n end)
  end

  defp total(counts), do: counts |> Enum.map(&elem(&1, 1)) |> Enum.sum()
  defp pad(n), do: n |> Integer.to_string() |> String.pad_leading(7)

  defp describe(:ok), do: "as the specification says"
  defp describe(:failed), do: "failed"
  defp describe(:withdrawn), do: "withdrawn by a later version of the specification"
  defp describe(:unsupported), do: "in need of a proposal that is not enabled"
  defp describe({:design, :sharing}), do: "by design: what instances would have to share"
  defp describe({:design, :exception}), do: "by design: exceptions caught by another instance"
  defp describe({:design, :type}), do: "by design: imports whose types are not told apart"
  defp describe({:design, :nan}), do: "by design: payloads of NaNs"
  defp describe({:design, :reference}), do: "by design: references without an Elixir form"
  defp describe({:design, :text}), do: "by design: empty source is text"
  defp describe({:design, :other}), do: "by design: threads"
end
