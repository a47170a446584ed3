defmodule Beamr.ModuleTest do
  use Beamr.Case, async: true

  alias Beamr.CompileError

  doctest Beamr.Module

  @header <<0, "asm", 1, 0, 0, 0>>
  @types %{memory: %{index_type: :i32, page_size: 65_536, shared: false}}

  defp error(source) do
    {:error, %CompileError{} = error} = Beamr.compile(source)
    error
  end

  defp export(fields, name \\ "x") do
    exports = "(module #{fields})" |> Beamr.compile!() |> Beamr.Module.exports()
    {^name, type} = List.keyfind(exports, name, 0)
    type
  end

  # A module of one function with this body, which no text format can write any more.
  defp with_body(body) do
    code = <<1, byte_size(body) + 2, 0>> <> body <> <<0x0B>>
    type = <<1, 4, 1, 0x60, 0, 0>>
    function = <<3, 2, 1, 0>>
    tag = <<13, 3, 1, 0, 0>>
    @header <> type <> function <> tag <> <<10, byte_size(code)>> <> code
  end

  describe "source that is no module" do
    test "an unknown version is invalid at the byte it stands at" do
      assert %{reason: :invalid_wasm, offset: 4} = error(<<0, "asm", 2, 0, 0, 0>>)
    end

    test "a section that is no section is invalid where it was noticed" do
      assert %{reason: :invalid_wasm, offset: 10} = error(@header <> <<77, 0>>)
    end

    test "a body that does not type-check is invalid at the byte of the instruction" do
      error = error(with_body(<<0x6A>>))
      assert %{reason: :invalid_wasm, offset: 28} = error
      assert error.detail =~ "type mismatch"
      refute error.detail =~ "28"
    end

    test "text that does not type-check is invalid as bytes are" do
      error = error("(module (func (result i32)))")
      assert %{reason: :invalid_wasm, line: nil, column: nil} = error
      assert is_integer(error.offset)
    end

    test "text that does not parse is invalid at its line and column" do
      error = error("(module\n  (func i32.frob))")
      assert %{reason: :invalid_wat, line: 2, column: 9, offset: nil} = error
      assert error.detail =~ "unknown operator"
    end

    test "text that names what is not there is invalid at the name" do
      error = error("(module\n  (func\n    (call $nope)))")
      assert %{reason: :invalid_wat, line: 3, column: 11} = error
      assert error.detail =~ "$nope"
    end

    test "text that ends too early is invalid where it ends" do
      assert %{reason: :invalid_wat, line: 1, column: 14} = error("(module (func")
    end

    test "bytes that are neither text nor a module are invalid at the first bad byte" do
      assert %{reason: :invalid_utf8, offset: 8} = error(<<"(module ", 0xFF, ")">>)
    end

    test "nothing at all is invalid" do
      assert %{reason: :invalid_wat} = error("")
    end

    test "a component says that it is one" do
      assert %{reason: :component} = error(<<0, "asm", 0x0D, 0, 1, 0>>)
      assert %{reason: :component} = error("(component)")
    end

    test "names are no part of what is wrong, whatever they say" do
      for name <- [
            "x at offset 7: y",
            "x (at offset 0x7)",
            "legacy_exceptions",
            "threads must be enabled",
            "` is disabled `"
          ] do
        export = "(export \"#{name}\" (global 0))"
        error = error("(module (global i32 (i32.const 0)) #{export} #{export})")
        assert error.reason == :invalid_wasm
        assert error.detail == "duplicate export name `#{name}` already defined"
        # Behind the header, the global's section, and what comes before the second export.
        assert error.offset == 8 + 8 + 3 + (1 + byte_size(name) + 2)
      end
    end

    test "a prefix of a module is an error or a module" do
      module =
        @header <>
          <<1, 5, 1, 0x60, 0, 1, 0x7F>> <>
          <<3, 2, 1, 0>> <>
          <<5, 3, 1, 0, 1>> <>
          <<7, 14, 2, 1, "f", 0, 0, 6, "memory", 2, 0>> <>
          <<10, 6, 1, 4, 0, 0x41, 7, 0x0B>> <>
          <<11, 8, 1, 0, 0x41, 0, 0x0B, 2, "hi">>

      assert {:ok, [7]} = module |> Beamr.instantiate!() |> Beamr.call("f", [])

      for length <- 0..(byte_size(module) - 1) do
        case module |> binary_part(0, length) |> Beamr.compile() do
          {:ok, %Beamr.Module{}} -> assert length >= byte_size(@header)
          {:error, error} -> assert error.reason in [:invalid_wat, :invalid_wasm]
        end
      end
    end

    test "a module with any of its bytes changed is an error or a module" do
      module = with_body(<<0x41, 1, 0x1A, 0x03, 0x40, 0x0B, 0x00>>)
      assert {:ok, _module} = Beamr.compile(module)

      for_random_cases(200, fn ->
        place = :rand.uniform(byte_size(module)) - 1

        case Beamr.compile(overwrite(module, place, <<:rand.uniform(256) - 1>>)) do
          {:ok, module} -> assert is_list(Beamr.Module.exports(module))
          {:error, error} -> assert is_binary(Exception.message(error))
        end
      end)
    end
  end

  describe "what this engine does not have" do
    test "shared memories" do
      error = error("(module (memory 1 1 shared))")
      assert error.reason == :unsupported
      assert error.detail =~ "threads"
    end

    test "atomic instructions" do
      error = error("(module (memory 1) (func (drop (i32.atomic.load (i32.const 0)))))")
      assert error.reason == :unsupported
      assert is_integer(error.offset)
    end

    test "continuations" do
      error = error("(module (type $f (func)) (type (cont $f)))")
      assert error.reason == :unsupported
      assert error.detail =~ "stack switching"
    end

    test "branch tables of more targets than it can compile" do
      targets = String.duplicate(" 0", 100_000)
      error = error("(module (func (br_table#{targets} (i32.const 0))))")
      assert error.reason == :unsupported
      assert error.detail =~ "`br_table` has"
      refute Exception.message(error) =~ "Unsupported"
    end

    for {name, body} <- [
          {"try and catch", <<0x06, 0x40, 0x07, 0, 0x0B>>},
          {"try and catch_all", <<0x06, 0x40, 0x19, 0x0B>>},
          {"try and delegate", <<0x06, 0x40, 0x18, 0>>},
          {"catch", <<0x07, 0>>},
          {"rethrow", <<0x09, 0>>},
          {"catch_all", <<0x19>>}
        ] do
      test "legacy exceptions, by #{name}: the error names the cure" do
        error = error(with_body(unquote(body)))
        assert %{reason: :legacy_exceptions, offset: 28} = error
        assert Exception.message(error) =~ "wasm-opt --translate-to-exnref"
      end
    end

    test "the standard exceptions are no legacy exceptions" do
      assert {:ok, _module} =
               Beamr.compile("""
               (module (tag $e)
                 (func (block $caught (try_table (catch_all $caught) (throw $e)))))
               """)
    end
  end

  describe "imports and exports" do
    test "are listed in the module's order" do
      module =
        Beamr.compile!("""
        (module
          (import "b" "y" (func))
          (import "a" "x" (func))
          (import "b" "" (func))
          (func (export "z"))
          (func (export "")))
        """)

      function = {:function, %{params: [], results: []}}

      assert Beamr.Module.imports(module) ==
               [{"b", "y", function}, {"a", "x", function}, {"b", "", function}]

      assert Beamr.Module.exports(module) == [{"z", function}, {"", function}]
    end

    test "an import of each kind" do
      module =
        Beamr.compile!("""
        (module
          (import "env" "f" (func (param i64) (result f32)))
          (import "env" "m" (memory 1 2))
          (import "env" "g" (global (mut i64)))
          (import "env" "t" (table 3 funcref))
          (import "env" "e" (tag (param i32))))
        """)

      assert Beamr.Module.imports(module) == [
               {"env", "f", {:function, %{params: [:i64], results: [:f32]}}},
               {"env", "m", {:memory, Map.merge(@types.memory, %{minimum: 1, maximum: 2})}},
               {"env", "g", {:global, %{type: :i64, mutable: true}}},
               {"env", "t",
                {:table, %{element: :funcref, minimum: 3, maximum: nil, index_type: :i32}}},
               {"env", "e", {:tag, %{params: [:i32]}}}
             ]
    end

    test "a function of every number and vector type" do
      assert export(~S|(func (export "x") (param i32 i64) (param f32 f64 v128))|) ==
               {:function, %{params: [:i32, :i64, :f32, :f64, :v128], results: []}}
    end

    test "a function with several results" do
      assert export(~S|(func (export "x") (result f64 i32) unreachable)|) ==
               {:function, %{params: [], results: [:f64, :i32]}}
    end

    test "reference types are named by their hierarchy" do
      type = """
      (type $struct (struct))
      (func (export "x")
        (param funcref (ref func) nullfuncref externref (ref extern) anyref eqref i31ref)
        (param (ref $struct) exnref))
      """

      assert {:function, %{params: params}} = export(type)
      funcs = [:funcref, :funcref, :funcref]

      assert params ==
               funcs ++ [:externref, :externref, :anyref, :anyref, :anyref, :anyref, :exnref]
    end

    test "a memory without a maximum" do
      assert export(~S|(memory (export "x") 3)|) ==
               {:memory, Map.merge(@types.memory, %{minimum: 3, maximum: nil})}
    end

    test "a memory of 64 bits, with limits that only it can have" do
      assert export(~S|(memory (export "x") i64 0 0x1_0000_0000)|) ==
               {:memory,
                %{@types.memory | index_type: :i64} |> Map.merge(%{minimum: 0, maximum: 2 ** 32})}
    end

    test "globals" do
      assert export(~S|(global (export "x") f32 (f32.const 0))|) ==
               {:global, %{type: :f32, mutable: false}}

      assert export(~S|(global (export "x") (mut externref) (ref.null extern))|) ==
               {:global, %{type: :externref, mutable: true}}
    end

    test "tables" do
      assert export(~S|(table (export "x") 1 10 externref)|) ==
               {:table, %{element: :externref, minimum: 1, maximum: 10, index_type: :i32}}

      assert export(~S|(table (export "x") i64 2 funcref)|) ==
               {:table, %{element: :funcref, minimum: 2, maximum: nil, index_type: :i64}}
    end

    test "tags" do
      assert export(~S|(tag (export "x") (param i32 f64))|) == {:tag, %{params: [:i32, :f64]}}
    end

    test "names of any Unicode" do
      assert {:function, _type} = export(~S|(func (export "naïve \00 🦀"))|, "naïve \0 🦀")
    end
  end

  describe "name/1" do
    test "is nil where the module gives itself none" do
      assert Beamr.Module.name(Beamr.compile!("(module)")) == nil
    end
  end

  describe "inspect/1" do
    test "shows the name" do
      assert inspect(Beamr.compile!("(module $calculator)")) == "#Beamr.Module<calculator>"
      assert inspect(Beamr.compile!("(module)")) == "#Beamr.Module<unnamed>"
    end
  end
end
