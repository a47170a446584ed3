defmodule Beamr.NativeTest do
  use Beamr.Case, async: true

  alias Beamr.Native

  @sources Path.wildcard("native/beamr/src/*.rs")

  # What is exported besides the NIFs.
  @others [__info__: 1, module_info: 0, module_info: 1, load: 0]

  defp stubs, do: Enum.sort(Native.module_info(:exports) -- @others)

  defp nifs, do: @sources |> Enum.flat_map(&nifs(File.read!(&1))) |> Enum.sort()

  defp nifs(source) do
    plain = ~r/^#\[rustler::nif[^\]]*\]\s*(?:pub )?fn (\w+)/m
    pairs = ~r/^operation!\(\s*(\w+),\s*(\w+)(?: on \w+)?,/m

    Enum.flat_map([plain, pairs], &Regex.scan(&1, source, capture: :all_but_first))
    |> List.flatten()
    |> Enum.map(&String.to_atom/1)
  end

  test "has a stub for each NIF, and a NIF for each stub" do
    names = for {name, _arity} <- stubs(), do: name
    assert Enum.sort(names) == nifs()
  end

  test "names each NIF after a Rust file" do
    files = for path <- @sources, do: Path.basename(path, ".rs")
    assert for(name <- nifs(), prefix(name) not in files, do: name) == []
  end

  defp prefix(name), do: name |> Atom.to_string() |> String.split("_") |> hd()

  test "has a spec for each stub" do
    {:ok, specs} = Code.Typespec.fetch_specs(Native)
    assert Enum.sort(for {function, _spec} <- specs, do: function) == stubs()
  end

  test "is loaded: no stub answers for itself" do
    for {name, arity} <- stubs(), arity > 0 do
      for junk <- [:junk, -1, 2 ** 70, [1 | 2], make_ref(), <<1::3>>] do
        assert_raise ArgumentError, fn -> apply(Native, name, List.duplicate(junk, arity)) end
      end
    end

    assert Native.bench_noop() == :ok
  end

  test "counts what is alive" do
    wasm = Beamr.instantiate!("(module)")
    counts = Native.count_live()
    assert Keyword.keys(counts) == [:modules, :instances, :stores, :functions, :terms, :wasi]
    for kind <- [:modules, :instances, :stores], do: assert(counts[kind] > 0)
    Beamr.close(wasm)
  end

  # A list that does not end must not get to rustler's iterator, which panics.
  test "refuses improper lists" do
    module = Beamr.compile!("(module)")
    options = {100, 10, nil, nil, nil, nil}
    wasi = {[], [], [], "", nil, nil, nil, nil, false}
    {:ok, granted} = Native.wasi_new(wasi)

    for {name, args} <- [
          module_compile: ["(module)", [:fuel | :fuel], nil],
          artifact_read: ["", [:fuel | :fuel]],
          instance_start: [module.ref, options, [1 | 2]],
          instance_start_dirty: [module.ref, options, [1 | 2]],
          instance_start: [module.ref, put_elem(options, 5, {granted, [0 | 1]}), []],
          wasi_new: [put_elem(wasi, 0, ["a" | "b"])],
          wasi_new: [put_elem(wasi, 1, [{"a", "b"} | "c"])],
          wasi_new: [put_elem(wasi, 2, [{"a", "b", true} | "c"])]
        ] do
      assert_raise ArgumentError, fn -> apply(Native, name, args) end
    end
  end

  test "does not go through long lists on a normal scheduler, empty ones neither" do
    wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1))|)
    empty = List.duplicate([], 1_000_000)
    assert Native.memory_write(wasm.ref, nil, 0, empty, false) == :dirty
    assert Native.typed_write_many(wasm.ref, nil, [{0, empty}], false) == :dirty
    assert Beamr.IO.write(wasm, 0, empty) == :ok
  end

  test "answers whatever an instance is asked with" do
    terms = [:junk, nil, -1, 0, 1.5, 2 ** 70, [1 | 2], "memory", <<1::3>>, make_ref(), self()]

    for_random_cases(300, fn ->
      wasm =
        Beamr.instantiate!(~S|(module (memory (export "memory") 1) (func (export "memory_")))|)

      {name, arity} = Enum.random(for {_, arity} = stub <- stubs(), arity > 1, do: stub)
      args = for _ <- 2..arity, do: Enum.random(terms)

      try do
        apply(Native, name, [wasm.ref | args])
      rescue
        ArgumentError -> :refused
      end
    end)
  end
end
