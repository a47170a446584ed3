defmodule Beamr.ErrorTest do
  use Beamr.Case, async: true

  alias Beamr.{
    AllocatorError,
    CallError,
    CompileError,
    Exit,
    ExportError,
    ImportError,
    LimitError,
    LinkError,
    MemoryError,
    StructError,
    Trap,
    WASIError
  }

  # Every reason of every exception, and what it says.
  @messages [
    {%CompileError{reason: :invalid_wasm, offset: 31, detail: "type mismatch"},
     "invalid WebAssembly at byte 31 (0x1f): type mismatch"},
    {%CompileError{reason: :invalid_wasm, detail: "type mismatch"},
     "invalid WebAssembly: type mismatch"},
    {%CompileError{reason: :invalid_wat, line: 2, column: 9, detail: "unknown operator"},
     "invalid WebAssembly text at line 2, column 9: unknown operator"},
    {%CompileError{reason: :invalid_wat, line: 2, column: 9, detail: "oh", path: "a/b.wat"},
     "a/b.wat: invalid WebAssembly text at line 2, column 9: oh"},
    {%CompileError{reason: :invalid_utf8, offset: 8},
     ~S|neither a WebAssembly module (which begins with "\0asm") nor WebAssembly text: | <>
       "invalid UTF-8 at byte 8"},
    {%CompileError{reason: :unsupported, offset: 11, detail: "threads"},
     "unsupported WebAssembly feature at byte 11 (0xb): threads"},
    {%CompileError{reason: :legacy_exceptions, offset: 28},
     "the module uses the legacy exception-handling opcodes, which are not supported at byte 28 " <>
       "(0x1c); rewrite it with Binaryen's wasm-opt --translate-to-exnref (or compile it with " <>
       "the standard exception handling of your toolchain)"},
    {%CompileError{reason: :component},
     "this is a WebAssembly component; only core modules are supported"},
    {%CompileError{reason: :damaged},
     "not a serialized module, or one that has been damaged since it was written"},
    {%CompileError{reason: :incompatible, detail: "it is old"},
     "the serialized module cannot be used here: it is old"},
    {%CompileError{reason: {:file, :enoent}, path: "no.wasm"},
     "no.wasm: cannot be read: no such file or directory"},
    {%CompileError{reason: :system, detail: "no memory"}, "the engine failed: no memory"},
    {%LinkError{
       imports: [
         %{
           module: "env",
           name: "a",
           problem: :missing,
           wanted: {:function, %{params: [:i32, :f64], results: [:i64]}},
           given: nil
         },
         %{
           module: "env",
           name: "b",
           problem: :type,
           wanted: {:function, %{params: [], results: []}},
           given: :nope
         },
         %{
           module: "x",
           name: "m",
           problem: :missing,
           wanted:
             {:memory,
              %{minimum: 1, maximum: nil, index_type: :i32, page_size: 65_536, shared: false}},
           given: nil
         },
         %{
           module: "x",
           name: "t",
           problem: :missing,
           wanted: {:table, %{element: :funcref, minimum: 1, maximum: 9, index_type: :i64}},
           given: nil
         },
         %{
           module: "x",
           name: "g",
           problem: :type,
           wanted: {:global, %{type: :i32, mutable: false}},
           given: 1
         },
         %{
           module: "x",
           name: "h",
           problem: :missing,
           wanted: {:global, %{type: :f32, mutable: true}},
           given: nil
         },
         %{
           module: "x",
           name: "e",
           problem: :missing,
           wanted: {:tag, %{params: [:i32, :i64]}},
           given: nil
         },
         %{
           module: "x",
           name: "v",
           problem: :value,
           wanted: {:global, %{type: :f32, mutable: true}},
           given: {:global, "1"}
         },
         %{
           module: "x",
           name: "s",
           problem: :too_small,
           wanted:
             {:memory,
              %{minimum: 2, maximum: nil, index_type: :i32, page_size: 65_536, shared: false}},
           given: {:memory, 1},
           required: 2,
           provided: 1
         },
         %{
           module: "x",
           name: "l",
           problem: :too_large,
           wanted: {:table, %{element: :funcref, minimum: 1, maximum: 9, index_type: :i64}},
           given: {:table, 1, 10},
           required: 9,
           provided: 10
         },
         %{
           module: "x",
           name: "n",
           problem: :no_maximum,
           wanted:
             {:memory,
              %{minimum: 2, maximum: 4, index_type: :i32, page_size: 65_536, shared: false}},
           given: {:memory, 2},
           required: 4,
           provided: nil
         },
         %{
           module: "wasi_snapshot_preview1",
           name: "proc_exit",
           problem: :missing,
           wanted: {:function, %{params: [:i32], results: []}},
           given: nil
         }
       ]
     },
     """
     the module's imports are not satisfied:
       * "env" "a" is missing: function (i32, f64) -> (i64) (an Elixir function of arity 3: the instance comes first)
       * "env" "b" has the wrong type: function () -> () is wanted (an Elixir function of arity 1: the instance comes first), given: :nope
       * "x" "m" is missing: memory of 1 or more pages (i32) (:memory or {:memory, minimum, maximum})
       * "x" "t" is missing: table of 1 to 9 funcref (i64) (:table or {:table, minimum, maximum})
       * "x" "g" has the wrong type: global i32 is wanted (:global or {:global, value}), given: 1
       * "x" "h" is missing: mutable global f32 (:global or {:global, value})
       * "x" "e" is missing: tag (i32, i64)
       * "x" "v" must be an f32 (a number in its range, or one of the atoms nan, infinity and neg_infinity), given: {:global, "1"}
       * "x" "s" is too small: 2 pages are required, given: 1
       * "x" "l" is too large: at most 9 elements are allowed, given: 10
       * "x" "n" has no maximum: at most 4 pages are allowed
       * "wasi_snapshot_preview1" "proc_exit" is missing: function (i32) -> () (a function of WASI: the option wasi: [] grants it, see Beamr.WASI)\
     """},
    {%CallError{reason: :unknown_function, function: "f"},
     ~S|the module exports no function "f"|},
    {%CallError{reason: :arity, function: "f", wanted: 2, given: 3},
     ~S|"f" takes 2 argument(s), given: 3|},
    {%CallError{reason: :argument, function: "f", position: 2, wanted: :i32, given: :x},
     ~S|argument 2 of "f" must be an i32 (an integer from -2147483648 to 4294967295), given: :x|},
    {%CallError{reason: :argument, function: "f", position: 1, wanted: :i64, given: 1.0},
     ~S|argument 1 of "f" must be an i64 (an integer from -9223372036854775808 to | <>
       "18446744073709551615), given: 1.0"},
    {%CallError{reason: :argument, function: "f", position: 1, wanted: :f32, given: nil},
     ~S|argument 1 of "f" must be an f32 (a number in its range, or one of the atoms nan, | <>
       "infinity and neg_infinity), given: nil"},
    {%CallError{reason: :argument, function: "f", position: 1, wanted: :v128, given: ""},
     ~S|argument 1 of "f" must be a v128 (a binary of 16 bytes), given: ""|},
    {%CallError{reason: :argument, function: "f", position: 1, wanted: :funcref, given: 1},
     ~S|argument 1 of "f" must be a funcref (nil or a function of the same instance), given: 1|},
    {%CallError{reason: :argument, function: "f", position: 1, wanted: :externref, given: nil},
     ~S|argument 1 of "f" must be an externref (any term), given: nil|},
    {%CallError{reason: :argument, function: "f", position: 1, wanted: :anyref, given: 1},
     ~S|argument 1 of "f" must be a null anyref (nil), given: 1|},
    {%CallError{reason: :foreign_function, function: :handle},
     "not a function of this instance: :handle"},
    {%CallError{reason: :timeout, function: "f"}, ~S|the call of "f" timed out|},
    {%CallError{reason: :timeout}, "instantiation timed out"},
    {%CallError{reason: :interrupted, function: "f"}, ~S|the call of "f" was interrupted|},
    {%CallError{reason: :closed, function: "f"}, "the instance is closed"},
    {%CallError{reason: :depth, function: "f", wanted: 10},
     ~S|the call of "f" would nest calls deeper than max_depth (10)|},
    {%CallError{reason: :result, function: "malloc", given: [1, 2]},
     ~S|"malloc" should answer one integer, answered: [1, 2]|},
    {%CallError{reason: :system, function: "f", detail: "no memory"},
     ~S|the call of "f" failed: no memory|},
    {%CallError{reason: :system, detail: "no memory"}, "instantiation failed: no memory"},
    {%Exit{code: 3, function: "_start"}, "the guest exited with code 3"},
    {%WASIError{reason: :enoent, path: "no/such"},
     "no/such cannot be granted: no such file or directory"},
    {%WASIError{reason: :enotdir, path: "a.txt"}, "a.txt cannot be granted: not a directory"},
    {%WASIError{reason: :eacces, path: "/root"}, "/root cannot be granted: permission denied"},
    {%WASIError{reason: :system, path: "dir", detail: "Too many open files (os error 24)"},
     "dir cannot be granted: Too many open files (os error 24)"},
    {%WASIError{reason: :system, detail: "no threads"}, "WASI could not be started: no threads"},
    {%Trap{reason: :unreachable}, "the guest trapped: unreachable instruction executed"},
    {%Trap{
       reason: :integer_divide_by_zero,
       function: "f",
       backtrace: [
         %{name: "inner", index: 1, offset: 31},
         %{name: nil, index: 2, offset: 255},
         %{name: nil, index: 3, offset: nil}
       ]
     },
     """
     the guest trapped: integer divide by zero
         inner at 0x1f
         function 2 at 0xff
         function 3\
     """},
    {%Trap{reason: :other}, "the guest trapped: unknown trap"},
    {%ImportError{module: "env", name: "i", kind: :error, reason: %RuntimeError{message: "no"}},
     ~S|the import "env" "i" failed: ** (RuntimeError) no|},
    {%ImportError{module: "env", name: "i", kind: :error, reason: :badarith},
     ~S|the import "env" "i" failed: ** (ArithmeticError) bad argument in arithmetic expression|},
    {%ImportError{module: "env", name: "i", kind: :throw, reason: {:a, 1}},
     ~S|the import "env" "i" failed: ** (throw) {:a, 1}|},
    {%ImportError{module: "env", name: "i", kind: :exit, reason: :boom},
     ~S|the import "env" "i" failed: ** (exit) :boom|},
    {%ImportError{module: "env", name: "i", kind: :result, wanted: [:v128], given: :x},
     ~S|the import "env" "i" must return a v128 (a binary of 16 bytes), returned: :x|},
    {%ImportError{module: "env", name: "i", kind: :result, wanted: [:i32, :f64], given: [1]},
     ~S|the import "env" "i" must return a list of 2 values (i32, f64), returned: [1]|},
    {%MemoryError{reason: :out_of_bounds, offset: 65_534, length: 4, size: 65_536},
     "4 byte(s) at offset 65534 are outside the memory of 65536 bytes"},
    {%MemoryError{reason: :out_of_view, offset: 14, length: 4, size: 16, pointer: 1024},
     "4 byte(s) at offset 14 are outside the view of 16 bytes at 1024"},
    {%MemoryError{reason: :unterminated, offset: 7, size: 16, pointer: 1024},
     "no NUL ends the string at offset 7 of the view of 16 bytes at 1024"},
    {%MemoryError{reason: :unknown_memory, memory: "heap"}, ~S|the module has no memory "heap"|},
    {%MemoryError{reason: :unterminated, offset: 10, size: 65_536},
     "no NUL ends the string at offset 10 before the end of memory at 65536"},
    {%MemoryError{reason: :value_out_of_range, type: :i8, given: 128, offset: 4, length: 1},
     "i8 at offset 4 takes integers from -128 to 127, given: 128"},
    {%MemoryError{reason: :value_out_of_range, type: :f32, given: 1.0e300, offset: 4},
     "f32 at offset 4 takes finite numbers up to 3.4028235e38 in magnitude, given: 1.0e300"},
    {%MemoryError{reason: :value_out_of_range, type: :f64, given: 1, offset: 4},
     "f64 at offset 4 takes finite numbers up to 1.7976931348623157e308 in magnitude, given: 1"},
    {%MemoryError{reason: :invalid_utf8, offset: 4}, "the byte at offset 4 is no UTF-8"},
    {%MemoryError{reason: :cannot_grow, size: 65_536, length: 131_072},
     "the memory of 65536 bytes cannot grow by 131072 bytes"},
    {%MemoryError{reason: :timeout}, "waiting for the memory timed out"},
    {%MemoryError{reason: :malloc_failed, length: 6},
     "the guest's malloc has no room for 6 byte(s)"},
    {%MemoryError{reason: :closed}, "the instance is closed"},
    {%MemoryError{reason: :system, detail: "no room"}, "the memory operation failed: no room"},
    {%LimitError{reason: :max_memory, allowed: 65_536, wanted: 131_072},
     "max_memory allows 65536, the module wants at least 131072"},
    {%LimitError{reason: :max_table_elements, allowed: 1, wanted: 2},
     "max_table_elements allows 1, the module wants at least 2"},
    {%ExportError{reason: :unknown_export, kind: :global, name: "g"},
     ~S|the module has no global "g"|},
    {%ExportError{reason: :immutable, kind: :global, name: "g"}, ~S|the global "g" is immutable|},
    {%ExportError{reason: :type, kind: :global, name: "g", wanted: :v128, given: 1},
     ~S|the global "g" takes a v128 (a binary of 16 bytes), given: 1|},
    {%ExportError{reason: :foreign_function, kind: :table, name: "t", given: :handle},
     ~S|the table "t" takes functions of its own instance only, given: :handle|},
    {%ExportError{reason: :out_of_bounds, kind: :table, name: "t", given: 9, size: 3},
     ~S|index 9 is outside the table "t" of 3 element(s)|},
    {%ExportError{reason: :cannot_grow, kind: :table, name: "t", given: 9, size: 3},
     ~S|the table "t" of 3 element(s) cannot grow by 9|},
    {%ExportError{reason: :not_metered, kind: :fuel},
     "the module was not compiled with fuel: true"},
    {%ExportError{reason: :timeout, kind: :fuel}, "waiting for the fuel timed out"},
    {%ExportError{reason: :closed, kind: :table, name: "t"}, "the instance is closed"},
    {%StructError{reason: :type, field: [:a, 2, :b], wanted: :u8, given: 1.5},
     "the field a.2.b must be a u8 (an integer), given: 1.5"},
    {%StructError{reason: :type, field: [:x], wanted: :f32, given: nil},
     "the field x must be an f32 (a number, or one of the atoms nan, infinity and " <>
       "neg_infinity), given: nil"},
    {%StructError{reason: :type, field: [:b], wanted: :bool, given: 1},
     "the field b must be true or false, given: 1"},
    {%StructError{reason: :type, field: [:p], wanted: :ptr, given: ""},
     ~S|the field p must be a pointer (an integer from 0 on), given: ""|},
    {%StructError{reason: :type, field: [:e], wanted: {:enum, [:red, :blue]}, given: :pink},
     "the field e must be an integer or one of :red, :blue, given: :pink"},
    {%StructError{reason: :type, field: [:s], wanted: {:struct, [:x, :y]}, given: 7},
     "the field s must be a map with :x, :y, given: 7"},
    {%StructError{reason: :range, field: [:n], wanted: {:i8, {-128, 127}}, given: 128},
     "the field n must be an i8 (from -128 to 127), given: 128"},
    {%StructError{reason: :length, field: [:s], wanted: {:string, 4}, given: "four"},
     ~S|the field s must be a string of fewer than 4 bytes, given: "four"|},
    {%StructError{reason: :length, field: [:s], wanted: {:bytes, 4}, given: "4"},
     ~S|the field s must be a binary of 4 bytes, given: "4"|},
    {%StructError{reason: :length, field: [:a], wanted: {:array, :i32, 2}, given: [1]},
     "the field a must be a list of 2 values, given: [1]"},
    {%StructError{reason: :nul, field: [:s], wanted: {:string, 4}, given: "a\0"},
     ~S|the field s has a NUL inside, where C would see its end: <<97, 0>>|},
    {%StructError{reason: :missing_field, field: [:x], wanted: :f64}, "the field x is missing"},
    {%StructError{reason: :unknown_field, field: [:x, :y]}, "the layout has no field x.y"},
    {%StructError{reason: :unknown_field, field: [:x, [-1], self()]},
     "the layout has no field x.[-1].#{inspect(self())}"},
    {%StructError{reason: :overlap, field: [:u, :f], wanted: :i},
     "the field u.f shares bytes with the field i: only one of them can be given"},
    {%AllocatorError{reason: :size, size: 0}, "0 bytes cannot be allocated"},
    {%AllocatorError{reason: :alignment, alignment: 3}, "the alignment 3 is no power of two"},
    {%AllocatorError{reason: :overflow, size: 8, needed: 15, available: 7, base: 1024},
     "the region at 1024 has 7 byte(s) left, needed: 15"},
    {%AllocatorError{
       reason: :overlap,
       base: 16,
       limit: 32,
       other: %{kind: :bump, base: 0, limit: :infinity, owner: nil}
     }, "the region from 16 to 31 overlaps that of a bump allocator, from 0 on, owned by nil"},
    {%AllocatorError{reason: :uncovered, base: 1024, needed: 131_072, available: 65_536},
     "the region at 1024 ends at 131072, the memory has 65536 bytes"},
    {%AllocatorError{reason: :no_mark}, "there is no mark to go back to"},
    {%AllocatorError{reason: :unknown_pointer, pointer: 8},
     "nothing is allocated at 8 by this allocator"},
    {%AllocatorError{reason: :timeout}, "waiting for the memory to grow timed out"},
    {%AllocatorError{reason: :closed}, "the allocator is closed"}
  ]

  describe "message/1" do
    for {{exception, message}, n} <- Enum.with_index(@messages, 1) do
      name = exception.__struct__ |> Module.split() |> List.last()

      test "of #{name} #{inspect(Map.get(exception, :reason))} (#{n})" do
        exception = unquote(Macro.escape(exception))
        assert Exception.message(exception) == unquote(message)
      end
    end

    for module <- [
          CompileError,
          LinkError,
          CallError,
          MemoryError,
          LimitError,
          ExportError,
          StructError,
          AllocatorError,
          WASIError
        ] do
      test "is tested for each reason that #{inspect(module)} may have" do
        tested =
          for {%{__struct__: unquote(module), reason: reason}, _message} <- @messages,
              do: tag(reason)

        assert Enum.sort(reasons(unquote(module))) == tested |> Enum.uniq() |> Enum.sort()
      end
    end

    test "names each value type that there is" do
      for type <- ~w(i32 i64 f32 f64 v128 funcref externref anyref exnref contref)a do
        error = %CallError{reason: :argument, function: "f", position: 1, wanted: type, given: 0}
        assert Exception.message(error) =~ "#{type}"
      end
    end
  end

  # The reasons in an exception's type.
  defp reasons(module) do
    {:ok, types} = Code.Typespec.fetch_types(module)
    [type] = for {:type, {:t, _, _} = type} <- types, do: Code.Typespec.type_to_quoted(type)
    {:"::", _, [_name, {:%, _, [_module, {:%{}, _, fields}]}]} = type
    fields |> Keyword.fetch!(:reason) |> members()
  end

  defp members({:|, _, [left, right]}), do: members(left) ++ members(right)
  defp members(reason), do: [tag(reason)]

  defp tag({:{}, _, [tag | _]}), do: tag
  defp tag({tag, _}), do: tag
  defp tag(reason), do: reason

  describe "a trap" do
    for {reason, body, fields} <- [
          {:unreachable, "unreachable", ""},
          {:memory_out_of_bounds, "(drop (i32.load (i32.const 65533)))", "(memory 1)"},
          {:memory_out_of_bounds, "(memory.fill (i32.const 65535) (i32.const 1) (i32.const 2))",
           "(memory 1)"},
          {:table_out_of_bounds, "(drop (table.get (i32.const 5)))", "(table 5 funcref)"},
          {:table_out_of_bounds, "(call_indirect (i32.const 5))", "(table 5 funcref)"},
          {:indirect_call_to_null, "(call_indirect (i32.const 0))", "(table 5 funcref)"},
          {:bad_signature, "(call_indirect (i32.const 0))",
           "(table funcref (elem $g)) (func $g (param i32))"},
          {:integer_overflow, "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", ""},
          {:integer_overflow, "(drop (i32.trunc_f64_s (f64.const 1e30)))", ""},
          {:integer_divide_by_zero, "(drop (i64.rem_u (i64.const 1) (i64.const 0)))", ""},
          {:bad_conversion_to_integer, "(drop (i32.trunc_f32_s (f32.const nan)))", ""},
          {:stack_overflow, "(call $culprit)", ""},
          {:uncaught_exception, "(throw $e)", "(tag $e)"},
          {:null_reference, "(call_ref $t (ref.null $t))", "(type $t (func))"},
          {:null_reference, "(throw_ref (ref.null exn))", ""},
          {:cast_failure, "(drop (ref.cast (ref $s) (ref.i31 (i32.const 1))))",
           "(type $s (struct))"},
          {:array_out_of_bounds,
           "(drop (array.get $a (array.new_default $a (i32.const 3)) (i32.const 3)))",
           "(type $a (array i32))"},
          {:allocation_too_large, "(drop (array.new_default $a (i32.const -1)))",
           "(type $a (array i64))"}
        ] do
      test "#{reason} by #{body} says where, and the instance stays usable" do
        wasm =
          Beamr.instantiate!("""
          (module
            #{unquote(fields)}
            (func $culprit #{unquote(body)})
            (func $outer (export "f") (call $culprit))
            (func (export "ok") (result i32) (i32.const 7)))
          """)

        assert {:error, %Trap{reason: unquote(reason), function: "f"} = trap} =
                 Beamr.call(wasm, "f", [])

        assert [%{name: "culprit", index: index, offset: offset} | outer] = trap.backtrace
        assert is_integer(index)
        # A stack ends between two instructions.
        assert is_integer(offset) or unquote(reason) == :stack_overflow
        assert Enum.all?(outer, &(&1.name in ["culprit", "outer"]))
        assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
      end
    end

    test "names the frames from the innermost outwards" do
      wasm =
        Beamr.instantiate!("""
        (module
          (func $a unreachable)
          (func $b (call $a))
          (func (export "f") (call $b)))
        """)

      assert {:error, trap} = Beamr.call(wasm, "f", [])

      assert for(frame <- trap.backtrace, do: {frame.index, frame.name}) == [
               {0, "a"},
               {1, "b"},
               {2, nil}
             ]
    end

    test "gives the names of Rust and C++ as they were written" do
      wasm =
        Beamr.instantiate!(
          ~S|(module (func $_ZN4demo5parse17h05af221e174051e9E (export "f") unreachable))|
        )

      assert {:error, %Trap{backtrace: [%{name: "demo::parse"}]}} = Beamr.call(wasm, "f", [])
    end

    test "keeps what the guest had written before it" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1)
          (func (export "f") (i32.store8 (i32.const 0) (i32.const 9)) unreachable))
        """)

      assert {:error, %Trap{}} = Beamr.call(wasm, "f", [])
      assert Beamr.IO.read(wasm, 0, 1) == {:ok, <<9>>}
    end

    test "may come again and again" do
      wasm = Beamr.instantiate!(~S|(module (func $f (export "f") (call $f)))|)

      for _ <- 1..100 do
        assert {:error, %Trap{reason: :stack_overflow}} = Beamr.call(wasm, "f", [])
      end
    end

    test "in a funcref's call names no export but the function" do
      wasm =
        Beamr.instantiate!("""
        (module
          (elem declare func $bad)
          (func $bad unreachable)
          (func (export "bad") (result funcref) (ref.func $bad)))
        """)

      [bad] = Beamr.call!(wasm, "bad", [])

      assert {:error, %Trap{reason: :unreachable, function: ^bad, backtrace: [%{name: "bad"}]}} =
               Beamr.call(wasm, bad, [])
    end
  end
end
