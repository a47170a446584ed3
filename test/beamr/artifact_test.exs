defmodule Beamr.ArtifactTest do
  # Serialized modules, and the cache of them on disk.
  use Beamr.Case, async: true

  alias Beamr.{CompileError, Instance, Module, Trap}

  @source """
  (module $calculator
    (import "env" "twice" (func $twice (param i32) (result i32)))
    (memory (export "memory") 1 2)
    (global (export "level") (mut i32) (i32.const 5))
    (table (export "table") 3 funcref)
    (@custom "note" "hello")
    (data (i32.const 16) "wasm\\00")
    (func $inner (unreachable))
    (func (export "f") (param i32) (result i32) (call $twice (local.get 0)))
    (func (export "trap") (call $inner)))
  """

  defp twice, do: [imports: %{"env" => %{"twice" => fn _wasm, n -> n * 2 end}}]

  defp answer(n), do: "(module (func (export \"f\") (result i32) (i32.const #{n})))"

  defp ask(module), do: module |> Beamr.instantiate!() |> Beamr.call!("f", [])

  defp reason(binary, opts \\ []) do
    assert {:error, %CompileError{} = error} = Module.deserialize_trusted(binary, opts)
    error.reason
  end

  describe "a module that was serialized" do
    test "is the same module" do
      module = Beamr.compile!(@source)
      copy = module |> Module.serialize() |> Module.deserialize_trusted!()
      assert Module.name(copy) == "calculator"
      assert Module.imports(copy) == Module.imports(module)
      assert Module.exports(copy) == Module.exports(module)
      assert Module.custom_sections(copy) == Module.custom_sections(module)
      assert {"note", 5} in Module.custom_sections(copy)
      refute Module.metered?(copy)
    end

    test "does the same" do
      copy = @source |> Beamr.compile!() |> Module.serialize() |> Module.deserialize_trusted!()
      wasm = Beamr.instantiate!(copy, twice())
      assert Beamr.call(wasm, "f", [21]) == {:ok, [42]}
      assert Beamr.IO.read_string(wasm, 16) == {:ok, "wasm"}
      assert Instance.get_global(wasm, "level") == {:ok, 5}
      assert Instance.table_size(wasm, "table") == {:ok, 3}

      assert {:error, %Trap{reason: :unreachable, backtrace: [frame | _]}} =
               Beamr.call(wasm, "trap", [])

      assert frame.name == "inner"
    end

    test "imports what it imported" do
      source = ~S|(module (import "env" "memory" (memory 1)) (import "env" "g" (global i64)))|
      copy = source |> Beamr.compile!() |> Module.serialize() |> Module.deserialize_trusted!()
      imports = %{"env" => %{"memory" => :memory, "g" => {:global, 7}}}
      wasm = Beamr.instantiate!(copy, imports: imports)
      assert Beamr.IO.size(wasm) == {:ok, 65_536}
      assert Instance.get_global(wasm, "g") == {:ok, 7}
    end

    test "is the same bytes every time" do
      module = Beamr.compile!(@source)
      binary = Module.serialize(module)
      assert Module.serialize(module) == binary
      assert binary |> Module.deserialize_trusted!() |> Module.serialize() == binary
    end

    test "outlives the module" do
      binary = Module.serialize(Beamr.compile!(answer(7)))
      :erlang.garbage_collect()
      assert binary |> Module.deserialize_trusted!() |> ask() == [7]
    end

    test "keeps its options" do
      for {opts, metered} <- [
            {[fuel: false], false},
            {[fuel: true], true},
            {[deterministic: true], true},
            {[fuel: true, deterministic: true], true},
            {[compact: true], false},
            {[fuel: true, compact: true], true}
          ] do
        binary = Module.serialize(Beamr.compile!(answer(1), opts))
        assert binary |> Module.deserialize_trusted!() |> Module.metered?() == metered
        assert binary |> Module.deserialize_trusted!(opts) |> ask() == [1]
      end

      module = answer(1) |> Beamr.compile!(fuel: true) |> Module.serialize()
      wasm = Beamr.instantiate!(Module.deserialize_trusted!(module), fuel: 100)
      assert {:ok, [1]} = Beamr.call(wasm, "f", [])
      assert {:ok, left} = Instance.fuel(wasm)
      assert left < 100
    end

    test "is told from one with other options" do
      plain = Module.serialize(Beamr.compile!(answer(1)))
      fuel = Module.serialize(Beamr.compile!(answer(1), fuel: true))
      assert reason(plain, fuel: true) == :incompatible
      assert reason(plain, deterministic: true) == :incompatible
      assert reason(fuel, fuel: false) == :incompatible
      assert reason(fuel, deterministic: true) == :incompatible
      assert reason(plain, compact: true) == :incompatible
      compact = Module.serialize(Beamr.compile!(answer(1), compact: true))
      assert reason(compact, compact: false) == :incompatible
      assert reason(compact, compact: true, fuel: true) == :incompatible
      {:error, error} = Module.deserialize_trusted(fuel, fuel: false)
      assert error.detail =~ "fuel: true"
    end

    test "may be of any size" do
      binary =
        Module.serialize(
          Beamr.compile!(
            "(module (memory 16) (data (i32.const 0) \"#{String.duplicate("x", 1_000_000)}\"))"
          )
        )

      assert byte_size(binary) > 1_000_000
      assert {:ok, _module} = Module.deserialize_trusted(binary)
    end
  end

  describe "what was not serialized here" do
    test "is damaged" do
      module = Beamr.compile!("(module)")
      binary = Module.serialize(module)

      for junk <- [
            "",
            "x",
            "(module)",
            <<0, "asm", 1, 0, 0, 0>>,
            <<0, "beamr", 0, 1>>,
            <<0, "beamr", 0, 1, 5>>,
            :binary.copy(<<0>>, 10_000),
            binary <> <<0>>,
            <<0>> <> binary
          ] do
        assert reason(junk) == :damaged
      end
    end

    test "is damaged wherever it was cut off" do
      binary = Module.serialize(Beamr.compile!(answer(1)))
      header = 200

      for length <-
            Enum.to_list(0..header) ++ Enum.take_every(header..(byte_size(binary) - 1), 997) do
        assert reason(binary_part(binary, 0, length)) == :damaged
      end
    end

    test "is damaged or incompatible whichever byte was changed" do
      binary = Module.serialize(Beamr.compile!(@source))

      for_random_cases(300, fn ->
        at = random_integer(0, byte_size(binary) - 1)
        changed = Bitwise.bxor(:binary.at(binary, at), random_integer(1, 255))
        assert reason(overwrite(binary, at, <<changed>>)) in [:damaged, :incompatible]
      end)
    end

    test "is incompatible when it is of another version" do
      <<0, "beamr", 0, 1, length, _version::binary-size(length), rest::binary>> =
        Module.serialize(Beamr.compile!(answer(1)))

      other = <<0, "beamr", 0, 1, 6, "99.0.0", rest::binary>>
      assert reason(other) == :incompatible
      {:error, error} = Module.deserialize_trusted(other)
      assert error.detail =~ "99.0.0"
      assert_raise CompileError, fn -> Module.deserialize_trusted!(other) end
    end

    test "is incompatible when its engine was another" do
      # What an engine with other settings wrote, under a hash that is right.
      <<start::binary-size(8), length, version::binary-size(length), _hash::binary-size(32),
        _options, body::binary>> = Module.serialize(Beamr.compile!(answer(1), fuel: true))

      body = <<0, body::binary>>
      forged = [start, length, version, :crypto.hash(:sha256, body), body]
      assert reason(IO.iodata_to_binary(forged)) == :incompatible
    end

    test "is refused by a guard when it is no binary" do
      for junk <- [nil, ~c"abc", <<1::3>>, 1] do
        assert_raise FunctionClauseError, fn -> Module.deserialize_trusted(junk) end
        assert_raise FunctionClauseError, fn -> Module.serialize(junk) end
      end

      assert_raise ArgumentError, fn -> Module.deserialize_trusted("", nope: true) end
      assert_raise ArgumentError, fn -> Module.deserialize_trusted("", fuel: 1) end
    end
  end

  describe "a cache" do
    setup do
      folder =
        Path.join(
          System.tmp_dir!(),
          "beamr-cache-#{System.unique_integer([:positive])}-#{System.pid()}"
        )

      on_exit(fn -> File.rm_rf!(folder) end)
      %{folder: folder}
    end

    defp entries(folder),
      do: folder |> File.ls!() |> Enum.sort() |> Enum.map(&Path.join(folder, &1))

    test "is made for its owner only, and holds one entry for each source and options", %{
      folder: folder
    } do
      for _ <- 1..2,
          opts <- [[], [fuel: true], [deterministic: true], [compact: true]],
          n <- 1..2 do
        assert answer(n) |> Beamr.compile!([cache: folder] ++ opts) |> ask() == [n]
      end

      assert length(entries(folder)) == 8
      assert Bitwise.band(File.stat!(folder).mode, 0o777) == 0o700

      for entry <- entries(folder),
          do: assert(Bitwise.band(File.stat!(entry).mode, 0o777) == 0o600)
    end

    test "is where a module is taken from the second time", %{folder: folder} do
      Beamr.compile!(answer(1), cache: folder)
      [entry] = entries(folder)
      # Nothing but the entry says that the answer is 2.
      File.write!(entry, Module.serialize(Beamr.compile!(answer(2))))
      assert answer(1) |> Beamr.compile!(cache: folder) |> ask() == [2]
      assert answer(1) |> Beamr.compile!() |> ask() == [1]
    end

    test "replaces an entry that is damaged or another's", %{folder: folder} do
      Beamr.compile!(answer(1), cache: folder)
      [entry] = entries(folder)
      good = File.read!(entry)
      other = Module.serialize(Beamr.compile!(answer(2), fuel: true))

      for bad <- ["", "junk", binary_part(good, 0, 300), good <> "x", other] do
        File.write!(entry, bad)
        assert answer(1) |> Beamr.compile!(cache: folder) |> ask() == [1]
        assert File.read!(entry) == good
        assert entries(folder) == [entry]
      end
    end

    test "keeps nothing of source that does not compile", %{folder: folder} do
      for _ <- 1..2 do
        assert {:error, %CompileError{reason: :invalid_wat}} =
                 Beamr.compile("(module", cache: folder)
      end

      refute File.exists?(folder)
    end

    test "is used for files as well, under any name they have", %{folder: folder} do
      [one, other] = for name <- ["one.wat", "other.wat"], do: Path.join(folder, name)
      File.mkdir_p!(folder)
      for path <- [one, other], do: File.write!(path, answer(3))
      cache = Path.join(folder, "deep/cache")

      for path <- [one, other],
          do: assert(path |> Beamr.compile_file!(cache: cache) |> ask() == [3])

      assert [_entry] = entries(cache)
    end

    test "that cannot be written or read is no error", %{folder: folder} do
      File.mkdir_p!(folder)
      file = Path.join(folder, "file")
      File.write!(file, "")
      # a file, something below a file, a name too long, and one with a NUL
      for cache <- [
            file,
            Path.join(file, "x"),
            Path.join(folder, String.duplicate("x", 300)),
            folder <> "\0"
          ] do
        assert answer(1) |> Beamr.compile!(cache: cache) |> ask() == [1]
      end

      Beamr.compile!(answer(1), cache: folder)
      [entry] = entries(folder) -- [file]
      # A folder in an entry's place can be neither read nor replaced.
      File.rm!(entry)
      File.mkdir!(entry)
      assert answer(1) |> Beamr.compile!(cache: folder) |> ask() == [1]
      assert entries(folder) == Enum.sort([file, entry])
    end

    test "is used by many at once", %{folder: folder} do
      1..40
      |> Task.async_stream(fn n -> {n, ask(Beamr.compile!(answer(rem(n, 4)), cache: folder))} end,
        max_concurrency: 8
      )
      |> Enum.each(fn {:ok, {n, result}} -> assert result == [rem(n, 4)] end)

      assert length(entries(folder)) == 4
      for entry <- entries(folder), do: assert(String.ends_with?(entry, ".beamr"))
    end

    test "is named by a path", %{folder: folder} do
      assert {:ok, _module} = Beamr.compile(answer(1), cache: String.to_charlist(folder))
      assert [_entry] = entries(folder)
      assert {:ok, _module} = Beamr.compile(answer(1), cache: nil)

      for junk <- ["", [], 1, true, :cache, {:folder}] do
        assert_raise ArgumentError, ~r/:cache/, fn -> Beamr.compile(answer(1), cache: junk) end
      end
    end
  end
end
