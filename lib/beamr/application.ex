defmodule Beamr.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    Beamr.Telemetry.detect()

    children = [
      {Registry, keys: :unique, name: Beamr.Registry},
      %{id: Beamr.Allocator, start: {__MODULE__, :start_allocators, []}, type: :supervisor}
    ]

    Supervisor.start_link(children, strategy: :one_for_one, name: Beamr.Supervisor)
  end

  @doc false
  # An allocator whose region nobody knows of any more must not go on.
  def start_allocators do
    children = [
      Beamr.Allocator.Regions,
      {DynamicSupervisor, name: Beamr.Allocator.Books}
    ]

    Supervisor.start_link(children, strategy: :rest_for_one)
  end
end
